-- What each attachment may reach. All of them before this could reach everything.
ALTER TABLE bottles ADD COLUMN egress TEXT NOT NULL DEFAULT 'open' CHECK (egress IN ('open', 'allowlist', 'metered'));
