// written: numbers as they go to memory: f32, or f16 (WRITES_F16), rounded as the products round that will read them.
#if WRITES_F16
enable f16;
#import lib/rounded.wgsl
alias Written = f16;
alias Written4 = vec4<f16>;
fn written4(four: vec4<f32>) -> Written4 { return Written4(rounded4(four)); }
fn written(one: f32) -> Written { return Written(rounded4(vec4(one)).x); }
#else
alias Written = f32;
alias Written4 = vec4<f32>;
fn written4(four: vec4<f32>) -> Written4 { return four; }
fn written(one: f32) -> Written { return one; }
#endif
