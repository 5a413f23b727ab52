/**
 * What follows from something that is never changed (a catalog as it was read, a plan, a storage) is worked out once, and forgotten with it.
 * Invariant: `work` depends on nothing but the owner and the key.
 */
export function remembering<Owner extends object, Key, Value extends NonNullable<unknown> | null>(): (
  owner: Owner,
  key: Key,
  work: () => Value,
) => Value {
  const known = new WeakMap<Owner, Map<Key, Value>>();
  return (owner, key, work) => {
    let ofOwner = known.get(owner);
    if (ofOwner === undefined) {
      ofOwner = new Map();
      known.set(owner, ofOwner);
    }
    let value = ofOwner.get(key);
    if (value === undefined) {
      value = work();
      ofOwner.set(key, value);
    }
    return value;
  };
}
