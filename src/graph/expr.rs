//! Elementwise expressions: composed by the fuser, differentiated symbolically, rendered as WGSL or run in f64.

use std::fmt::Write;

/// A function of one element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unary {
    /// -x
    Neg,
    /// e^x
    Exp,
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// 1 / sqrt(x)
    InverseSqrt,
    /// 1 where x > 0, else 0; its derivative is taken to be 0, as torch.relu's at 0 is.
    Step,
}

/// A function of two elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Binary {
    /// x + y
    Add,
    /// x - y
    Sub,
    /// x * y
    Mul,
}

/// An expression over the elements of several inputs at one position.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// The element of this input.
    Input(usize),
    /// A number.
    Const(f32),
    /// A function of one expression.
    Unary(Unary, Box<Expr>),
    /// A function of two expressions.
    Binary(Binary, Box<Expr>, Box<Expr>),
}

use Binary::{Add, Mul, Sub};

impl Expr {
    /// `f(x)`
    pub fn unary(f: Unary, x: Expr) -> Expr {
        Expr::Unary(f, Box::new(x))
    }

    /// `f(x, y)`, without what is trivially zero or one.
    pub fn binary(f: Binary, x: Expr, y: Expr) -> Expr {
        let (zero, one) = (Expr::Const(0.0), Expr::Const(1.0));
        match (f, &x, &y) {
            (Add | Sub, _, b) if *b == zero => x,
            (Add, a, _) if *a == zero => y,
            (Sub, a, _) if *a == zero => Expr::unary(Unary::Neg, y),
            (Mul, a, b) if *a == zero || *b == zero => zero,
            (Mul, _, b) if *b == one => x,
            (Mul, a, _) if *a == one => y,
            _ => Expr::Binary(f, Box::new(x), Box::new(y)),
        }
    }

    /// The derivative towards input `i`.
    pub fn derivative(&self, i: usize) -> Expr {
        match self {
            Expr::Input(j) => Expr::Const(if i == *j { 1.0 } else { 0.0 }),
            Expr::Const(_) => Expr::Const(0.0),
            Expr::Unary(f, x) => {
                let dx = x.derivative(i);
                let outer = match f {
                    Unary::Neg => Expr::Const(-1.0),
                    Unary::Exp => self.clone(),
                    // s' = s (1 - s)
                    Unary::Sigmoid => {
                        Expr::binary(Mul, self.clone(), Expr::binary(Sub, Expr::Const(1.0), self.clone()))
                    }
                    // (x^-1/2)' = -1/2 (x^-1/2)^3
                    Unary::InverseSqrt => {
                        let cube = Expr::binary(Mul, Expr::binary(Mul, self.clone(), self.clone()), self.clone());
                        Expr::binary(Mul, Expr::Const(-0.5), cube)
                    }
                    Unary::Step => return Expr::Const(0.0),
                };
                Expr::binary(Mul, outer, dx)
            }
            Expr::Binary(Mul, x, y) => {
                let left = Expr::binary(Mul, x.derivative(i), (**y).clone());
                Expr::binary(Add, left, Expr::binary(Mul, (**x).clone(), y.derivative(i)))
            }
            Expr::Binary(f, x, y) => Expr::binary(*f, x.derivative(i), y.derivative(i)),
        }
    }

    /// The expression with every input replaced.
    pub fn substitute(&self, with: &dyn Fn(usize) -> Expr) -> Expr {
        match self {
            Expr::Input(i) => with(*i),
            Expr::Const(c) => Expr::Const(*c),
            Expr::Unary(f, x) => Expr::unary(*f, x.substitute(with)),
            Expr::Binary(f, x, y) => Expr::binary(*f, x.substitute(with), y.substitute(with)),
        }
    }

    /// The value in f64, given the inputs' elements.
    pub fn eval(&self, inputs: &dyn Fn(usize) -> f64) -> f64 {
        match self {
            Expr::Input(i) => inputs(*i),
            Expr::Const(c) => f64::from(*c),
            Expr::Unary(f, x) => {
                let x = x.eval(inputs);
                match f {
                    Unary::Neg => -x,
                    Unary::Exp => x.exp(),
                    Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
                    Unary::InverseSqrt => 1.0 / x.sqrt(),
                    Unary::Step if x > 0.0 => 1.0,
                    Unary::Step => 0.0,
                }
            }
            Expr::Binary(f, x, y) => {
                let (x, y) = (x.eval(inputs), y.eval(inputs));
                match f {
                    Add => x + y,
                    Sub => x - y,
                    Mul => x * y,
                }
            }
        }
    }

    /// The expression as WGSL; `input` writes an input's element.
    pub fn wgsl(&self, input: &dyn Fn(usize) -> String) -> String {
        let mut text = String::new();
        self.write(&mut text, input);
        text
    }

    fn write(&self, text: &mut String, input: &dyn Fn(usize) -> String) {
        match self {
            Expr::Input(i) => text.push_str(&input(*i)),
            Expr::Const(c) => write!(text, "f32({c:e})").expect("writing to a string"),
            Expr::Unary(f, x) => {
                text.push_str(match f {
                    Unary::Neg => "(-",
                    Unary::Exp => "exp(",
                    Unary::Sigmoid => "1.0 / (1.0 + exp(-",
                    Unary::InverseSqrt => "inverseSqrt(",
                    Unary::Step => "select(0.0, 1.0, 0.0 < ",
                });
                let grouped = matches!(f, Unary::Neg | Unary::Sigmoid);
                text.push_str(if grouped { "(" } else { "" });
                x.write(text, input);
                text.push_str(match f {
                    Unary::Sigmoid => ")))",
                    Unary::Neg => "))",
                    _ => ")",
                });
            }
            Expr::Binary(f, x, y) => {
                text.push('(');
                x.write(text, input);
                text.push_str(match f {
                    Add => " + ",
                    Sub => " - ",
                    Mul => " * ",
                });
                y.write(text, input);
                text.push(')');
            }
        }
    }

    /// Operations for one element; transcendental functions count as eight.
    pub fn flops(&self) -> u64 {
        match self {
            Expr::Input(_) | Expr::Const(_) => 0,
            Expr::Unary(Unary::Neg | Unary::Step, x) => 1 + x.flops(),
            Expr::Unary(_, x) => 8 + x.flops(),
            Expr::Binary(_, x, y) => 1 + x.flops() + y.flops(),
        }
    }
}
