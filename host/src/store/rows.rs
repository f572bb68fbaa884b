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
/// `insert_all!(tx, "kv", rows, |row| { key: row.key, value: row.value })`.
///
/// SQLite takes them as tuples, together with what follows in the transaction. Postgres takes an
/// array for each column, whatever their length in one statement, because there every statement is
/// a round trip; but a single row is cheaper as a tuple.
macro_rules! insert_all {
    ($tx:expr, $table:literal, $rows:expr, |$row:ident| {
        $first:ident: $first_value:expr $(, $column:ident: $value:expr)* $(,)?
    }) => {{
        const INTO: &str = concat!(
            "insert into ", $table,
            " (", stringify!($first) $(, ", ", stringify!($column))*, ") "
        );
        let (tx, rows): (&mut $crate::store::Tx, _) = ($tx, $rows);
        match tx.engine() {
            $crate::store::Engine::Sqlite => {
                for chunk in $crate::store::chunks(rows) {
                    let statement = tx.sqlite_statement(chunk.len()).await?;
                    statement.push(INTO).push_values(chunk, |mut tuple, $row| {
                        tuple.push_bind($first_value)$(.push_bind($value))*;
                    });
                }
            }
            $crate::store::Engine::Postgres if rows.is_empty() => {}
            $crate::store::Engine::Postgres => {
                let mut query = ::sqlx::QueryBuilder::<::sqlx::Postgres>::new(INTO);
                if rows.len() == 1 {
                    query.push_values(rows, |mut tuple, $row| {
                        tuple.push_bind($first_value)$(.push_bind($value))*;
                    });
                } else {
                    let mut arrays = query.push("select * from unnest(").separated(", ");
                    arrays.push_bind(rows.iter().map(|$row| $first_value).collect::<Vec<_>>());
                    $(
                        arrays.push_bind(rows.iter().map(|$row| {
                            // Not every column's value names its row.
                            let _ = $row;
                            $value
                        }).collect::<Vec<_>>());
                    )*
                    query.push(")");
                }
                if let $crate::store::Conn::Postgres(held) = tx.conn().await? {
                    query.build().execute(&mut **held).await?;
                }
            }
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
