/** Tables of a view beside its storage. Invariant: they are found by their names, whatever plan they were made for. */

/** Drops a view's hidden stages with their deltas, and changes set aside for it. */
export const dropAsideDdl = (viewId: number): string[] => [
  `DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'millrace_data'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^[wsd]${viewId}_' LOOP EXECUTE format('DROP TABLE %s CASCADE', t); END LOOP; END $$`,
  `DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'millrace_data'::regnamespace AND p.proname ~ '^capture_s${viewId}_' LOOP EXECUTE format('DROP FUNCTION %s', f); END LOOP; END $$`,
];
