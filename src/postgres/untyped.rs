//! A parameter whose type PostgreSQL decides, as it does for a quoted constant.
//!
//! `t.n = $1` takes the type of `n`. Use it with [`Type::UNKNOWN`] in `query_typed`, which spares
//! the round trip of a named statement as well.

use std::error::Error;

use bytes::BytesMut;
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

/// A value in PostgreSQL's own text format.
#[derive(Debug, Clone, Copy)]
pub struct Untyped<'a>(pub &'a str);

impl ToSql for Untyped<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    fn to_sql_checked(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.to_sql(ty, out)
    }
}

/// Values as `query_typed_raw` takes them.
pub fn untyped<S: AsRef<str>>(values: &[S]) -> impl ExactSizeIterator<Item = (Untyped<'_>, Type)> {
    let values = values.iter();
    values.map(|value| (Untyped(value.as_ref()), Type::UNKNOWN))
}
