//! Dead letters: deliveries that used up their attempts. Nothing makes any yet; what guests may
//! ask of them is answered truthfully all the same.

pub mod imports;
