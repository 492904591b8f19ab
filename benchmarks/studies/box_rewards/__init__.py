"""Study of whether the box reward teaches: it, MedMO's formula and no box term from one checkpoint. See `__main__`."""
