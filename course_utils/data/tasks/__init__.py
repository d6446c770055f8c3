"""Tasks from seeded generators: data sets with known answers, that need no network."""
