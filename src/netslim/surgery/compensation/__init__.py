"""What is done about that which removed channels emit."""
