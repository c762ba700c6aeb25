//! What a guest can touch: buses, PC devices and their host backends.
