//! settings.yml.
