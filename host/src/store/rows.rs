//! Statements about many rows at once.

/// How many rows one statement is about at most, on SQLite.
pub const ROWS_MAX: usize = 32;

/// `items` in runs of [`ROWS_MAX`] at most.
pub fn chunks<T>(items: &[T]) -> impl Iterator<Item = &[T]> {
    items.chunks(ROWS_MAX)
}

/// How many tuples a statement about `length` rows of [`chunks`] has: some more than it needs,
/// which are null, so that there are six texts of it, and all of them stay prepared.
pub fn tuples(length: usize) -> usize {
    const LENGTHS: [usize; 6] = [1, 2, 4, 8, 16, ROWS_MAX];
    let enough = LENGTHS.into_iter().find(|tuples| *tuples >= length);
    enough.unwrap_or(length)
}

/// Insert a row for each of `rows`:
/// `insert_all!(tx, "kv", rows, |row| { key: row.key, value: row.value })`.
///
/// SQLite takes them as tuples, together with what follows in the transaction; no row's first
/// column may be null. Postgres takes an array for each column, whatever their length in one
/// statement, because there every statement is a round trip; but a single row is cheaper as a tuple.
///
/// `, where |statement| …` after it adds, on SQLite, ` and …` to what must be true of a row so that
/// it is inserted; its columns are `column1`, `column2` and so on there.
macro_rules! insert_all {
    ($tx:expr, $table:literal, $rows:expr, |$row:ident| {
        $first:ident: $first_value:expr $(, $column:ident: $value:expr)* $(,)?
    }) => {
        $crate::store::insert_all!($tx, $table, $rows, |$row| {
            $first: $first_value $(, $column: $value)*
        }, where |_statement| {})
    };
    ($tx:expr, $table:literal, $rows:expr, |$row:ident| {
        $first:ident: $first_value:expr $(, $column:ident: $value:expr)* $(,)?
    }, where |$statement:ident| $condition:expr) => {{
        const INTO: &str = concat!(
            "insert into ", $table,
            " (", stringify!($first) $(, ", ", stringify!($column))*, ") "
        );
        const COLUMNS: usize = [stringify!($first) $(, stringify!($column))*].len();
        let (tx, rows): (&mut $crate::store::Tx, _) = ($tx, $rows);
        match tx.engine() {
            $crate::store::Engine::Sqlite => {
                for chunk in $crate::store::chunks(rows) {
                    let tuples = $crate::store::tuples(chunk.len());
                    let $statement = tx.sqlite_statement(tuples).await?;
                    $statement.push(INTO).push("select * from (");
                    $statement.push_values(chunk, |mut tuple, $row| {
                        tuple.push_bind($first_value)$(.push_bind($value))*;
                    });
                    for _ in chunk.len()..tuples {
                        let mut tuple = $statement.push(", (").separated(", ");
                        for _ in 0..COLUMNS {
                            tuple.push_bind(None::<i64>);
                        }
                        $statement.push(")");
                    }
                    $statement.push(") where column1 is not null");
                    $condition;
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
                    $crate::store::bounded!(held, |c| query.build().execute(c).await)?;
                }
            }
        }
    }};
}
pub(crate) use insert_all;

#[cfg(test)]
mod tests {
    use super::{chunks, tuples};

    #[test]
    fn chunks_keep_the_order_and_few_lengths_serve_them() {
        let items: Vec<u32> = (0..77).collect();
        let lengths: Vec<usize> = chunks(&items).map(<[u32]>::len).collect();
        assert_eq!(lengths, [32, 32, 13]);
        assert_eq!(chunks(&items).flatten().copied().collect::<Vec<_>>(), items);
        assert_eq!(chunks::<u32>(&[]).count(), 0);
        let few: std::collections::BTreeSet<usize> = (1..=32).map(tuples).collect();
        assert_eq!(few.len(), 6);
        assert!((1..=32).all(|length| (length..length * 2).contains(&tuples(length))));
    }
}
