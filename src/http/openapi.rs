//! `/rest/v1/`.
