//! Builtin functions whose cost a single call can choose, or that panic on some arguments: bounded ones take their
//! places. Out of bounds, the evaluation ends, and so the request is denied.

use anyhow::{bail, ensure};
use regorus::{Engine, Value};

/// Registers the bounded functions, which the interpreter prefers to its own.
///
/// # Errors
/// Where the interpreter does not take one.
pub(super) fn bound(engine: &mut Engine) -> anyhow::Result<()> {
    engine.add_extension("numbers.range".to_owned(), 2, Box::new(range))?;
    engine.add_extension("numbers.range_step".to_owned(), 3, Box::new(range_step))?;
    engine.add_extension("bits.lsh".to_owned(), 2, Box::new(shift))?;
    engine.add_extension("sprintf".to_owned(), 2, Box::new(sprintf))
}

/// The interpreter's own reserves memory for as many numbers as are asked for.
fn range(parameters: Vec<Value>) -> anyhow::Result<Value> {
    let [from, to] = parameters.as_slice() else { bail!("numbers.range takes two numbers") };
    let (from, to) = (from.as_i64()?, to.as_i64()?);
    ensure!(from.abs_diff(to) < MAX_RANGE, "numbers.range is bounded to {MAX_RANGE} numbers");
    let mut numbers: Vec<Value> = (from.min(to)..=from.max(to)).map(Value::from).collect();
    if from > to {
        numbers.reverse();
    }
    Ok(Value::from(numbers))
}

/// The interpreter's own divides by the step, whatever it is.
fn range_step(_: Vec<Value>) -> anyhow::Result<Value> {
    bail!("numbers.range_step is not available; use numbers.range")
}

/// The interpreter's own shifts by up to 2^32 bits.
fn shift(parameters: Vec<Value>) -> anyhow::Result<Value> {
    let bits = parameters.get(1).map(Value::as_i64).transpose()?;
    ensure!(bits.is_some_and(|bits| (0..=MAX_SHIFT).contains(&bits)), "bits.lsh is bounded to {MAX_SHIFT} bits");
    own("bits.lsh(input[0], input[1])", parameters)
}

/// The interpreter's own pads to any width, and panics on digits other than ours.
fn sprintf(parameters: Vec<Value>) -> anyhow::Result<Value> {
    let Some(Value::String(format)) = parameters.first() else { bail!("sprintf takes a format first") };
    let mut characters = format.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '%' || characters.next_if_eq(&'%').is_some() {
            continue;
        }
        let mut width = 0_u32;
        characters.next_if_eq(&'.');
        while let Some(digit) = characters.next_if(|character| character.is_numeric()) {
            let digit = digit.to_digit(10).filter(|_| width < MAX_WIDTH);
            let Some(digit) = digit else { bail!("sprintf is bounded to widths below {MAX_WIDTH}0, in digits 0 to 9") };
            width = width * 10 + digit;
        }
    }
    own("sprintf(input[0], input[1])", parameters)
}

/// Calls the interpreter's own function.
fn own(call: &str, parameters: Vec<Value>) -> anyhow::Result<Value> {
    let mut engine = Engine::new();
    engine.set_input(Value::from(parameters));
    let results = engine.eval_query(call.to_owned(), false)?;
    let value = results.result.first().and_then(|result| result.expressions.first());
    Ok(value.map_or(Value::Undefined, |expression| expression.value.clone()))
}

const MAX_RANGE: u64 = 10_000;
const MAX_SHIFT: i64 = 4096;
const MAX_WIDTH: u32 = 100;
