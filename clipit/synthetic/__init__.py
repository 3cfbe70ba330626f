"""The synthetic histology world: ordinary tile tables, report files and prompt sets, drawn from latent variables."""
