"""What people say about answers, from the endpoint to the database."""
