"""What a request says and what a reply says: parsing, and nothing about probing or judging."""
