//! `/rest/v1/rpc/{function}`.
