//! The shape of a statement: its text with everything taken out that may come in any number.
//!
//! Names become `N`, parameters `$`, and what is made of them is folded: a place in a row to `F`, a
//! condition or any tree of them to `C`, a list to its one member. Statements of this room have few
//! shapes, and [`is_ours`] knows them all; whatever a client sends, no statement has another one.
//! Pure, and of no use to the requests themselves: tests and readers of a server's log ask it.

/// Foldings, tried from the top until none applies. Each makes the text shorter.
const FOLDINGS: &[(&str, &str)] = &[
    // Places
    (" t . N ", " F "),
    (" i . N ", " P "),
    (" w . N ", " W "),
    (" pg_catalog . to_jsonb F ", " F "),
    (" F -> $ :: text ", " F "),
    (" F -> $ :: N ", " F "),
    (" F ->> $ :: text ", " F "),
    (" F ->> $ :: N ", " F "),
    (" ( F ) ", " F "),
    // Casts
    (" :: N . N ", " :: N "),
    (" :: N [ ] ", " :: N "),
    (" F :: N ", " F "),
    (" F :: text ", " F "),
    // Conditions
    (" $ :: pg_catalog . regconfig , ", " "),
    (" pg_catalog . to_tsvector F ", " F "),
    (" F @@ Q ( $ ) ", " C "),
    (" F ~ $ ", " C "),
    (" F ~ any ( $ ) ", " C "),
    (" F ~ all ( $ ) ", " C "),
    (" F is T ", " C "),
    (" F is distinct from $ ", " C "),
    (" P ~ $ ", " C "),
    (" e . N ~ F ", " C "),
    (" not ( C ) ", " C "),
    (" not C ", " C "),
    (" ( C ) ", " C "),
    (" C and C ", " C "),
    (" C or C ", " C "),
    // What is shown
    (" F as N ", " I "),
    (" I , I ", " I "),
    (
        " ( select pg_catalog . row_to_json ( s . * ) from ( select I ) s ) :: text as N ",
        " J ",
    ),
    (
        " ( select pg_catalog . row_to_json ( s . * ) from ( select ) s ) :: text as N ",
        " J ",
    ),
    (" pg_catalog . row_to_json ( t . * ) :: text as N ", " J "),
    (
        " pg_catalog . convert_to ( pg_catalog . row_to_json ( t . * ) :: text , ' UTF8 ' ) ",
        " V ",
    ),
    (
        " pg_catalog . convert_to ( ( select pg_catalog . row_to_json ( s . * ) from ( select I ) s ) :: text , ' UTF8 ' ) ",
        " V ",
    ),
    (
        " pg_catalog . convert_to ( ( select pg_catalog . row_to_json ( s . * ) from ( select ) s ) :: text , ' UTF8 ' ) ",
        " V ",
    ),
    (
        " pg_catalog . left ( pg_catalog . encode ( pg_catalog . sha256 ( V ) , ' hex ' ) , 32 ) ~ any ( $ ) ",
        " C ",
    ),
    (" J , I ", " J "),
    (" J , J ", " J "),
    (" order by F ", " order by O "),
    (" order by W ", " order by O "),
    (" O desc ", " O "),
    (" O nulls first ", " O "),
    (" O nulls last ", " O "),
    (" O , F ", " O "),
    (" O , W ", " O "),
    // What is written
    (" N ~ P ", " A "),
    (" N ~ default ", " A "),
    (" N ~ excluded . N ", " A "),
    (" A , A ", " A "),
    (" P , P ", " P "),
    (" N , N ", " N "),
    (" F , F ", " F "),
    (" t . xmax ~ 0 as N ", " X "),
    (" true as N ", " X "),
    (" false as N ", " X "),
    (
        " not exists ( select from N . N as e where C ) as N ",
        " X ",
    ),
    (" pg_catalog . json_build_array I ", " K "),
    (" returning X , J ", " returning X "),
    (" returning X , I ", " returning X "),
    (" returning X , K ", " returning X "),
    (
        " from pg_catalog . json_to_recordset ( $ :: pg_catalog . json ) as i ( D ) ",
        " from B ",
    ),
    (
        " select from pg_catalog . json_array_elements ( $ :: pg_catalog . json ) ",
        " select P from B ",
    ),
    (" as t ( N ) select P from B ", " as t select P from B "),
    (" on conflict ( N ) ", " on conflict "),
    (" on conflict do nothing ", " on conflict "),
    (" on conflict do update set A ", " on conflict "),
    (" where C on conflict ", " on conflict "),
    (" B on conflict ", " B "),
    // Several inserts
    (
        " G as ( insert into N . N as t select P from B returning X ) ",
        " H ",
    ),
    (" H , H ", " H "),
    (
        " select * from G union all select * from G ",
        " select * from G ",
    ),
    (
        " H , w as ( select * from G ) ",
        " w as ( insert into N . N as t select P from B returning X ) ",
    ),
];

/// The shape of `sql`.
#[must_use]
pub fn shape(sql: &str) -> String {
    let mut text = format!(" {} ", words(sql).join(" "));
    loop {
        let before = text.len();
        for (from, to) in FOLDINGS {
            while text.contains(from) {
                text = text.replace(from, to);
            }
        }
        if text.len() == before {
            return text.trim().to_owned();
        }
    }
}

/// Whether it is a shape of a statement of this room.
#[must_use]
pub fn is_ours(shape: &str) -> bool {
    fn option<'a>(text: &'a str, optional: &str) -> &'a str {
        text.strip_suffix(optional).unwrap_or(text)
    }
    let read = option(option(shape, " offset $"), " limit $");
    let read = option(option(read, " order by O"), " where C");
    let some = shape.strip_suffix(" limit $ ) s").unwrap_or_default();
    let count = option(shape, " where C");
    if read == "select J from N . N as t"
        || option(some, " where C") == "select count ( * ) as N from ( select from N . N as t"
        || count == "select count ( * ) as N from N . N as t"
        || count == "explain ( format json ) select from N . N as t"
    {
        return true;
    }
    let outcomes = [
        " ) select W from w",
        " ) select W from w order by O",
        " ) select count ( * ) as N , count ( * ) filter ( where W ) as N from w",
        " ) select count ( * ) as N , count ( * ) filter ( where W ) as N , pg_catalog . min ( W ) as N from w",
    ];
    let shape = shape.replace("select W , W from", "select W from");
    let write = outcomes.iter().find_map(|end| shape.strip_suffix(end));
    let write = write.and_then(|write| write.strip_prefix("with w as ( "));
    let write = write.map(|write| write.replace(" where C returning X", " returning X"));
    matches!(
        write.as_deref(),
        Some(
            "insert into N . N as t select P from B returning X"
                | "update N . N as t set A from B returning X"
                | "update N . N as t set A returning X"
                | "delete from N . N as t returning X"
        )
    )
}

/// Words and signs as PostgreSQL's lexer finds them, with `N` for a quoted name, `$` for a parameter,
/// `~` for a comparison and so on.
fn words(sql: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut chars = sql.chars().peekable();
    while let Some(c) = chars.next() {
        let mut word = String::from(c);
        match c {
            ' ' => continue,
            '"' => {
                loop {
                    match chars.next() {
                        Some('"') if chars.next_if_eq(&'"').is_none() => break,
                        None => break,
                        Some(_) => {}
                    }
                }
                word.replace_range(.., "N");
            }
            '$' => while chars.next_if(char::is_ascii_digit).is_some() {},
            c if is_sign(c) => {
                while let Some(c) = chars.next_if(|c| is_sign(*c)) {
                    word.push(c);
                }
            }
            c if c.is_ascii_alphanumeric() => {
                while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    word.push(c);
                }
            }
            _ => {}
        }
        words.push(word);
    }
    fold_words(words)
}

fn is_sign(c: char) -> bool {
    "+-*/<>=~!@#%^&|:".contains(c)
}

const COMPARISONS: [&str; 18] = [
    "=", "<>", ">", ">=", "<", "<=", "~", "~*", "@>", "<@", "&&", "<<", ">>", "&<", "&>", "-|-",
    "like", "ilike",
];

/// What is one word among several of a kind, and what is a list that only the catalogue knows.
fn fold_words(words: Vec<String>) -> Vec<String> {
    let mut folded: Vec<String> = Vec::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let before = folded.last().map_or("", String::as_str);
        let word = match word.as_str() {
            sign if COMPARISONS.contains(&sign) => "~".to_owned(),
            "null" | "true" | "false" | "unknown" if before == "is" => "T".to_owned(),
            "not" if before == "is" => continue,
            group if is_group(group) => "G".to_owned(),
            "to_tsquery" | "plainto_tsquery" | "phraseto_tsquery" | "websearch_to_tsquery" => {
                folded.truncate(folded.len() - 2);
                "Q".to_owned()
            }
            // SQL's own words for types come only from our list: `::double precision as`.
            type_ if before == "::" && super::statement::is_type(type_) => {
                while words
                    .next_if(|word| super::statement::is_type(word))
                    .is_some()
                {}
                "N".to_owned()
            }
            "(" if before == "i" => {
                // Column definitions, whose types are the catalogue's.
                let mut depth = 1;
                while depth > 0 {
                    match words.next().as_deref() {
                        Some("(") => depth += 1,
                        Some(")") => depth -= 1,
                        None => break,
                        Some(_) => {}
                    }
                }
                folded.extend(["(".to_owned(), "D".to_owned()]);
                ")".to_owned()
            }
            _ => word,
        };
        folded.push(word);
    }
    folded
}

fn is_group(word: &str) -> bool {
    word.strip_prefix('g')
        .is_some_and(|number| number.parse::<u8>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_things_is_one_shape() {
        let few = "select (select pg_catalog.row_to_json(s.*) from (select t.\"a\" as \"a\") s)::text as \"row\" \
                   from \"s\".\"t\" as t where t.\"a\" = $1 order by t.\"a\"";
        let many = "select (select pg_catalog.row_to_json(s.*) from (select t.\"a\"::\"x\"\"\" as \"a\", \
                    (pg_catalog.to_jsonb(t.\"b\") -> $1::text ->> $2::integer)::double precision[] as \"b\") s)::text as \"row\" \
                    from \"s\".\"t\" as t where not (t.\"a\" like all($3) or (t.\"b\" is not null and t.\"c\" is distinct from $4)) \
                    order by t.\"a\" desc nulls last, t.\"b\"";
        assert_eq!(shape(few), "select J from N . N as t where C order by O");
        assert_eq!(shape(many), shape(few));
        assert!(is_ours(&shape(few)));
    }

    #[test]
    fn what_does_not_belong_is_seen() {
        for foreign in [
            "select 1",
            "select pg_catalog.row_to_json(t.*)::text as \"row\" from \"s\".\"t\" as t where t.\"a\" = 1",
            "select pg_catalog.row_to_json(t.*)::text as \"row\" from \"s\".\"t\" as t where t.\"a\" = $1 or true",
            "select pg_catalog.row_to_json(t.*)::text as \"row\" from \"s\".\"t\" as t; drop table x",
            "select pg_catalog.row_to_json(t.*)::text as \"row\" from \"s\".\"t\" as t -- x",
            "select pg_catalog.row_to_json(t.*)::text as \"row\" from \"s\".\"t\" as t order by pg_sleep(1)",
        ] {
            assert!(!is_ours(&shape(foreign)), "{}", shape(foreign));
        }
    }
}
