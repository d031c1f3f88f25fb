
-- Last of all, in every version. What is made is everybody's to call until somebody says otherwise.

REVOKE ALL ON SCHEMA @schema@ FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA @schema@ FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA @schema@ FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA @schema@ FROM PUBLIC;

INSERT INTO @schema@.meta (version) VALUES (@version@) ON CONFLICT (one) DO UPDATE SET version = EXCLUDED.version;

SELECT FROM @schema@.arrive();
