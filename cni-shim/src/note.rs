//! Words for people, on stderr: nothing depends on them, and a line that cannot be written is no fault.

/// One line, in the words of `format!`.
macro_rules! note {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "enid-cni: {}", format_args!($($words)*));
    }};
}
