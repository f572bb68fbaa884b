//! Statements about many rows at once.

/// `items` in runs whose lengths are powers of two, 32 at most: a statement with one tuple per
/// item then has six texts, and all six stay prepared.
pub fn chunks<T>(mut items: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let length = 1 << items.len().checked_ilog2()?.min(5);
        let (chunk, rest) = items.split_at(length);
        items = rest;
        Some(chunk)
    })
}

/// Insert a row for each of `rows`:
/// `insert_all!(&mut tx.conn, "kv", rows, |row| { key: row.key, value: row.value })`.
///
/// SQLite takes them as tuples. Postgres takes an array for each column, whatever their length in
/// one statement, because there every statement is a round trip; but a single row is cheaper as
/// a tuple.
macro_rules! insert_all {
    ($conn:expr, $table:literal, $rows:expr, |$row:ident| {
        $first:ident: $first_value:expr $(, $column:ident: $value:expr)* $(,)?
    }) => {{
        const INTO: &str = concat!(
            "insert into ", $table,
            " (", stringify!($first) $(, ", ", stringify!($column))*, ") "
        );
        macro_rules! tuples {
            ($tuples:expr, $held:expr) => {{
                let mut query = ::sqlx::QueryBuilder::new(INTO);
                query.push_values($tuples, |mut tuple, $row| {
                    tuple.push_bind($first_value)$(.push_bind($value))*;
                });
                query.build().execute(&mut **$held).await?;
            }};
        }
        let rows = $rows;
        match $conn {
            $crate::store::Conn::Sqlite(held) => {
                for chunk in $crate::store::chunks(rows) {
                    tuples!(chunk, held);
                }
            }
            $crate::store::Conn::Postgres(held) => match rows.len() {
                0 => {}
                1 => tuples!(rows, held),
                _ => {
                    let mut query = ::sqlx::QueryBuilder::new(INTO);
                    let mut arrays = query.push("select * from unnest(").separated(", ");
                    arrays.push_bind(rows.iter().map(|$row| $first_value).collect::<Vec<_>>());
                    $(
                        arrays.push_bind(rows.iter().map(|$row| {
                            // Not every column's value names its row.
                            let _ = $row;
                            $value
                        }).collect::<Vec<_>>());
                    )*
                    query.push(")").build().execute(&mut **held).await?;
                }
            },
        }
    }};
}
pub(crate) use insert_all;

#[cfg(test)]
mod tests {
    use super::chunks;

    #[test]
    fn chunks_are_powers_of_two_and_keep_the_order() {
        let items: Vec<u32> = (0..77).collect();
        let lengths: Vec<usize> = chunks(&items).map(<[u32]>::len).collect();
        assert_eq!(lengths, [32, 32, 8, 4, 1]);
        assert_eq!(chunks(&items).flatten().copied().collect::<Vec<_>>(), items);
        assert_eq!(chunks::<u32>(&[]).count(), 0);
    }
}
