"""`graftlm serve`: an endpoint that speaks OpenAI's chat and completion protocol."""
