// written_item: an item as it goes to memory (lib/written.wgsl).
#import lib/item.wgsl
#import lib/written.wgsl
#if VECTOR
alias WrittenItem = Written4;
fn written_item(item: Item) -> WrittenItem { return written4(item); }
#else
alias WrittenItem = Written;
fn written_item(item: Item) -> WrittenItem { return written(item); }
#endif
