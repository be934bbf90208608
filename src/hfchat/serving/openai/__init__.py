"""OpenAI's API: the shapes of requests and answers, and the endpoints that generate."""
