"""Runs the target model over draft trees; torch and transformers load when first used."""
