"""The search for a run's sampler settings (ucgm tune-sampler)."""
