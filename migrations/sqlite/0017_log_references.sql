-- Below which leaf every list of references is published that a leaf has only the digest of. Servers before this column
-- published none of those of leaves that were there already.
ALTER TABLE log_checkpoint ADD COLUMN references_to INTEGER NOT NULL DEFAULT 0;
