"""What `bench score` kills: `jobs` of each kind, `killing` them, and the tables of `damage`."""
