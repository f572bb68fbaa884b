//! SQLite on a disk that refuses writes for a while: no answer is lost there, but what was accepted
//! before must come to its end as it must on Postgres.

use super::super::files::ReadOnly;
use super::super::small_disk::SmallDisk;
use super::lasting::{broken, for_a_while};
use super::rig::Rig;

#[test]
fn a_file_system_that_is_read_only_for_a_while() {
    let rig = Rig::on_sqlite(None);
    let mut read_only = None;
    broken("a read-only file system", &rig, true, || {
        for_a_while(|| read_only = Some(ReadOnly::make(&rig.server)), || ())();
        read_only = None;
    });
}

#[test]
fn a_disk_that_is_full_for_a_while() {
    let disk = SmallDisk::mount();
    let rig = Rig::on_sqlite(Some(disk.path().join("data")));
    let full = for_a_while(|| disk.leave(0), || disk.empty());
    broken("a full disk", &rig, true, full);
}
