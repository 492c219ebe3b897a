"""Images to latent shards, and what is in a data set (ucgm encode, ucgm data)."""
