-- Parts of classes that may be priced apart. Of exchanges before this nothing is known of them.
ALTER TABLE exchanges ADD COLUMN cache_write_5m_tokens INTEGER NOT NULL DEFAULT 0 CHECK (cache_write_5m_tokens >= 0); -- of cache_write
ALTER TABLE exchanges ADD COLUMN cache_write_1h_tokens INTEGER NOT NULL DEFAULT 0 CHECK (cache_write_1h_tokens >= 0); -- of cache_write
ALTER TABLE exchanges ADD COLUMN tool_prompt_tokens    INTEGER NOT NULL DEFAULT 0 CHECK (tool_prompt_tokens >= 0);    -- of input
