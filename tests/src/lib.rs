//! The harness of the end-to-end tests: what the cases in `tests/` share.
