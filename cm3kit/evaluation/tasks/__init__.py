"""Tasks that ship, one YAML file each; copy one and change it (docs/evaluation.md)."""
