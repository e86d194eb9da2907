"""Full blocks on external storage under content keys: the truth about what is cached."""
