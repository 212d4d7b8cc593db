//! The first process of a bare boot: it says that it runs and waits for the machine to be stopped.

#![forbid(unsafe_code)]

fn main() {
    println!("bare init runs");
    loop {
        std::thread::park();
    }
}
