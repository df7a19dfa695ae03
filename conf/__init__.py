"""The configuration files, as a package so that an installed Roundtrip finds them."""
