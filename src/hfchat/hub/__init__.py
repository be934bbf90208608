"""What leaves the project: models merged, saved and certified."""
