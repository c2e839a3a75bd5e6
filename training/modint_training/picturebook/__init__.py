"""The picture-book: everyday things in several styles of drawing, asked about as people ask."""
