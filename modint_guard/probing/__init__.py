"""What is asked besides the request: its perturbed views, and when they are sent."""
