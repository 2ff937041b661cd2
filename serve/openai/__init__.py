"""OpenAI's API: completions, chats, embeddings, and the rankings of Cohere's and Jina's."""
