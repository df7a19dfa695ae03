"""The data sources that ship with Roundtrip, one a module; `data.base` states their contract."""
