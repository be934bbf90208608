"""What should not be in a text: personal data, obscenity. For cleaning data, for guards, and for evaluation."""
