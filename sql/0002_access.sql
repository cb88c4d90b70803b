-- What the API may reach besides watched tables. History: run once, never edited after a release.

-- Functions. By signature and not by oid or regprocedure: neither survives pg_upgrade, which
-- refuses to run where a column is of that type. A function that is made anew under the same
-- signature stays exposed, so what makes one unfit is asked again whenever the catalogue is read.
create table rowcast.exposed_function (
  signature text not null,
  constraint exposed_function_pkey primary key (signature)
);
comment on table rowcast.exposed_function is 'Functions that may be called through the API; no others can be';
comment on column rowcast.exposed_function.signature is 'As regprocedure writes it when no schema but pg_catalog is in the search path';
alter table rowcast.exposed_function owner to rowcast_owner;
