//! Names of tables, columns and types in SQL text. Values are always parameters and never come here.

use std::fmt::Write;

/// A name as a quoted identifier: `a"b` becomes `"a""b"`.
///
/// NUL cannot occur: PostgreSQL has no such names, and the callers take theirs from its catalogue.
#[must_use]
pub fn identifier(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len() + 2);
    quoted.push('"');
    for c in name.chars() {
        if c == '"' {
            quoted.push('"');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

/// `"schema"."table"`.
#[must_use]
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

/// The name of a table as a command of ours takes it, in a shell: quoted for SQL where SQL would read another name, and
/// for the shell where it would read something else.
#[must_use]
pub fn argument(schema: &str, table: &str) -> String {
    let plain = |name: &str| {
        !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let part = |name: &str| {
        if plain(name) {
            name.to_owned()
        } else {
            identifier(name)
        }
    };
    match schema {
        "public" => word(&part(table)),
        schema => word(&format!("{}.{}", part(schema), part(table))),
    }
}

/// A text as one word of a shell, which would take quotes away.
#[must_use]
pub fn word(text: &str) -> String {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
    if text.bytes().all(harmless) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A string constant for the few places where PostgreSQL takes no parameter (`row_to_json` member
/// names, `notify`). Backslashes stay as they are: `standard_conforming_strings` is on by default
/// since 9.1, and an escape string is used when there is one, so both settings read the same.
#[must_use]
pub fn literal(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 3);
    if text.contains('\\') {
        quoted.push_str(" E");
    }
    quoted.push('\'');
    for c in text.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            c => {
                let _infallible = quoted.write_char(c);
            }
        }
    }
    quoted.push('\'');
    quoted
}

/// A type of a column, as `format_type` names it, for a column list: there `character` and `bit` mean one
/// character and one bit. These do not; the assignment to the column still applies its length.
#[must_use]
pub fn whole_type(type_name: &str) -> String {
    let (element, dimensions) = match type_name.find('[') {
        Some(place) => type_name.split_at(place),
        None => (type_name, ""),
    };
    match element {
        "character" => format!("bpchar{dimensions}"),
        "bit" => format!("\"bit\"{dimensions}"),
        _ => type_name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(qualified("s", "t\n"), "\"s\".\"t\n\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'"), " E'a\\\\'''");
    }

    #[test]
    fn a_table_is_one_argument_that_names_no_other() {
        for (schema, table, written) in [
            ("public", "cards", "cards"),
            ("archive", "cards_2", "archive.cards_2"),
            ("public", "Order", "'\"Order\"'"),
            ("Shop", "cards", "'\"Shop\".cards'"),
            ("public", "odd name; ls", "'\"odd name; ls\"'"),
            ("public", "it's", r#"'"it'\''s"'"#),
            ("public", "2nd", "'\"2nd\"'"),
            ("public", "a.b", "'\"a.b\"'"),
        ] {
            assert_eq!(argument(schema, table), written);
        }
    }

    #[test]
    fn types_that_would_shrink_are_written_whole() {
        assert_eq!(whole_type("character"), "bpchar");
        assert_eq!(whole_type("bit[]"), "\"bit\"[]");
        assert_eq!(whole_type("character varying"), "character varying");
    }
}
