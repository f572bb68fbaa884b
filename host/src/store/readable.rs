//! Rows that are loaded all at once.

use super::StoreError;

/// What many rows stand for. One that is not what it must be is no reason that the others cannot
/// be used; whoever loads them tells of it.
#[derive(Debug)]
pub struct Readable<T> {
    rows: Vec<T>,
    unreadable: Vec<StoreError>,
}

impl<T> Readable<T> {
    /// Those that can be read; what is wrong with the others is added to `unreadable`.
    pub fn and_tell(mut self, unreadable: &mut Vec<StoreError>) -> Vec<T> {
        unreadable.append(&mut self.unreadable);
        self.rows
    }

    /// Those that can be read, where the others do not matter.
    pub fn or_skip(self) -> Vec<T> {
        self.rows
    }

    /// All of them.
    ///
    /// # Errors
    /// What is wrong with the first that cannot be read.
    pub fn or_fail(self) -> Result<Vec<T>, StoreError> {
        match self.unreadable.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(self.rows),
        }
    }
}

impl<T> FromIterator<Result<T, StoreError>> for Readable<T> {
    fn from_iter<I: IntoIterator<Item = Result<T, StoreError>>>(read: I) -> Self {
        let (mut rows, mut unreadable) = (Vec::new(), Vec::new());
        for one in read {
            match one {
                Ok(row) => rows.push(row),
                Err(error) => unreadable.push(error),
            }
        }
        Self { rows, unreadable }
    }
}
