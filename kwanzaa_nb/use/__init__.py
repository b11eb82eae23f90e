"""Use an adapter: a library of documents, a question, a page to chat. Imports the stages and the reports."""
