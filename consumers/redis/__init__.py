"""Redis as working memory."""
