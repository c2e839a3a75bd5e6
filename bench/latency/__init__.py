"""What the guard adds to a request's time: guarded and unguarded requests in turns, on pinned cores."""
