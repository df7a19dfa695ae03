"""The models that ship with Roundtrip, one a module; `models.base` states their contract."""
