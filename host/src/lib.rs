//! PiCloud.
