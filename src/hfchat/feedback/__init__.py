"""What people say of the answers they got, kept with the conversations, for those who make the model better."""
